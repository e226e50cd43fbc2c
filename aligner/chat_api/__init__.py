"""OpenAI's chat protocol as servers really speak it: the one place for each question about a reply."""
