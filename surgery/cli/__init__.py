"""The command line: one file for each verb. Importing this package imports nothing heavy."""
