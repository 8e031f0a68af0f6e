"""What check, audit and explain say: values first; text, JSON, HTML and figures from the same value."""
