"""Find, check and prepare the base model."""
