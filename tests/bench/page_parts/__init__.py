"""Parts of page_cost.py and people.py."""
