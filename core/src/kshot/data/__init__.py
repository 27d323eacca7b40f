"""What plugins of real data share: folders, CSV files, their splits, pictures, texts, tables, downloads, archives."""
