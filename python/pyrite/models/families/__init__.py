"""Model families as data, one file each; `registry.py` names them and imports them when a config asks."""
