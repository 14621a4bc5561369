"""One plot in each file: what is drawn from a finished study, and how it is told in words."""
