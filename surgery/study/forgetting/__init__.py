"""What arms forget: measured along W0 + t (W - W0), and compared where they have learned as much as each other.

along       one run: the probe and the validation examples at every t
arms        what is known of each arm, as plain data
forgotten   from the records of a study to that
matched     curves, and where they reach a level
checks      lines of the checklist
paths       means over seeds at every t, for the plot
tables      rows of CSV files
"""
