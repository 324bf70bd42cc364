"""What is measured: ours and llm-siren, the processes that they run in, and what a text costs."""
