"""The papers' methods, one concept a file: what fails and how it is rebuilt, what replicas exchange, which way
microbatches go, what is measured, and what all that costs. No file here loads torch when it is imported."""
