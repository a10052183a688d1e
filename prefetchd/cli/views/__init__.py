"""What commands show: charts, sheets, tables, progress."""
