"""Prompts to start from, so that a first vote is easy. Written for this project."""

from __future__ import annotations

STARTERS = (
    ("Explain something", "Explain how a rainbow forms, in three sentences."),
    ("Plan a weekend", "Plan a cheap, quiet weekend at home for two people."),
    ("Write a message", "Write a short, friendly message to a neighbour whose music is too loud."),
    ("Get an idea", "Suggest three small habits that make mornings easier."),
)
"""(button, prompt) pairs for the empty chat."""

COMPARE = (
    "Write a two-sentence bedtime story about a lighthouse.",
    "Give me one good reason to learn to cook.",
    "How do I start a conversation with somebody shy?",
    "Describe autumn to a friend who has never seen it.",
    "Suggest a name for a small bakery and say why.",
    "What should I check before buying a used bicycle?",
    "Explain what a budget is to a ten-year-old.",
    "Write a kind note for a colleague's last day.",
    "How can I fall asleep faster?",
    "Tell me something surprising about octopuses.",
    "What is a polite way to say no to an invitation?",
    "Give me a tip for keeping house plants alive.",
    "Why is the sky dark at night?",
    "Write a cheerful line for a birthday card.",
    "How do I make a long train ride pleasant?",
    "Suggest a simple dinner with potatoes.",
    "What is the difference between weather and climate?",
    "Help me to say sorry to a friend whom I kept waiting.",
    "Name one thing that makes a city good to live in.",
    "How do I learn ten words of a new language each day?",
)
"""Prompts that the comparison page suggests, one after the other."""
