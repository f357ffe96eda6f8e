"""Sources: each yields record batches and a schema, and nothing else."""
