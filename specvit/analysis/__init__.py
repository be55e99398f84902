"""Finished runs to tables, figures and reports. Reads run folders, never trains."""
