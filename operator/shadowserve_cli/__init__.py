"""`shadowserve`: the command line for people; every part adds its own commands."""
