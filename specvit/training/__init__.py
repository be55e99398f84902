"""The training loop and its parts. Imports neither models nor data: it takes a module, two views and a task."""
