"""The five papers as notebooks: how they are executed, swept over settings, recorded, verified and reported."""
