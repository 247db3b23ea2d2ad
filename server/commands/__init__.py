"""The program's commands. They use server/, archive/ and queue/; nothing there uses them."""
