"""From a request to text: what is asked, one jitted function, and where the text goes."""
