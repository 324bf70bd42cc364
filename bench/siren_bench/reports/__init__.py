"""What is shown of recorded results: charts, and tables in documents."""
