"""Answers to questions about the whole journal, made of what a backend finds."""
