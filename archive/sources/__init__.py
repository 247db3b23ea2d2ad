"""Where the readers of the log find it: a folder, a bucket, a file or stdin."""
