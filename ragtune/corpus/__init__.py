"""Folders and question files in; documents, passages, located questions and a report on what is wrong with them out."""
