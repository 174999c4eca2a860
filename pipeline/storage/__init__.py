"""Where files live that outlast a process: a folder of a disk, or a prefix of an object store. The only door to obstore."""
