"""Policy versions: their record, their files, what happens to them."""
