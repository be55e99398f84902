"""The commands: each module parses its command line, calls the package that does the work, and prints."""
