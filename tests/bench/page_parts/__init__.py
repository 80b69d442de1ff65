"""Parts of page_cost.py."""
