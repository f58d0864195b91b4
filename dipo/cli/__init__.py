"""The command `dipo` and its commands, read by one parser and guarded by one handler of errors.

Heavy imports wait until a command runs, so that help and completion answer at once.
"""
