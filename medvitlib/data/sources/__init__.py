"""Where sets come from: names and folders that hold them, downloads, archives, arrays, `datasets` objects."""
