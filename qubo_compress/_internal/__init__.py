"""What every room of the package uses and no user names: how files are written and read."""
