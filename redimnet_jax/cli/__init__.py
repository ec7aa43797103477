"""The command lines of the package; every command has a file of its own."""
