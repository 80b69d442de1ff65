"""What a reward model is made of: the linear head, its losses, its accuracy, and rater reliability."""
