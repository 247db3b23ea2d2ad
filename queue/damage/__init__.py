"""What is found broken in a queue, and what can be done about it. Imports the core, never back."""
