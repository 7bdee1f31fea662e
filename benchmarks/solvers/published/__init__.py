"""Problems of others as choice problems, with their sources and their known best values."""
