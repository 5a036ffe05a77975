"""What a computer has found, kept so that it is not computed twice: finished runs, work in progress, tables."""
