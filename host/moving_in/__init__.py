"""Moving in from elsewhere: another system's home becomes rows, files and settings of this one."""
