"""The training loop and its parts. Sees neither models nor data: it is handed a module, views and a task."""
