"""Training: the trainer, its optimizers, checkpoints, and two trainings that are one model."""
