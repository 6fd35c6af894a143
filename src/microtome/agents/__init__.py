"""What an agent may use: the instruments and the record, through the Model Context Protocol."""
