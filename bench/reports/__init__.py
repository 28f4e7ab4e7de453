"""Tables and plots of committed results, one file per kind."""
