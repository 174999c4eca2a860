"""What a network is worth: a Subject is judged by what it makes of Data, and a Score says what came of it."""
