"""A guard in front of a model server that speaks OpenAI's API: prompts and answers are read."""
