"""What check, audit and explain say: values first, then text, JSON, HTML and figures of them."""
