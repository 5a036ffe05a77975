"""What models read: embedded corpora and those of the hub, as texts, as tokens, and as batches by step."""
