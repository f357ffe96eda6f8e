"""A trained model on new rows: as an object, and as the commands predict and recommend."""
