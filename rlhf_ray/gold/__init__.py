"""Generated task families with an exact gold reward, for demos, tests and reproductions."""
