"""Make, train, measure and export the starter model that ships in `pyrite/starter`."""
