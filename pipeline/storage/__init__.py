"""Folders of files on a disk or in an object store, and streams of source tars. The only door to obstore."""
