# What makes the file an EFI application: the headers of a PE32+ image (Microsoft's PE format; UEFI 2.1.1), which efi.ld puts at its beginning.
# Written by hand, since not every ld writes such images. Nothing in the image has to be set right when it is loaded elsewhere.

	.section .header, "a"
head:
	.ascii "MZ"
	.org 0x3c
	.long pe - head
pe:
	.ascii "PE\0\0"
	.short 0x8664			# x86_64
	.short 3			# sections
	.long 0, 0, 0
	.short sections - optional
	.short 0x0226			# executable, any address, no line numbers, no debug information
optional:
	.short 0x020b			# PE32+
	.short 0
	.long text_size, data_size, 0
	.long start, text
	.quad 0				# where it would like to lie
	.long 0x1000, 0x1000		# sections on pages, in memory and in the file
	.long 0, 0, 0, 0
	.long end, text			# sizes of the image, and of this
	.long 0
	.short 10			# an EFI application
	.short 0x0100			# needs no memory that can be written and executed
	.quad 0, 0, 0, 0
	.long 0
	.long 6				# directories, of which we have the last: what to set right
	.quad 0, 0, 0, 0, 0
	.long reloc, reloc_size
sections:
	.ascii ".text\0\0\0"
	.long text_size, text, text_size, text, 0, 0, 0
	.long 0x60000020		# code: execute, read
	.ascii ".data\0\0\0"
	.long data_size, data, data_size, data, 0, 0, 0
	.long 0xc0000040		# data: read, write
	.ascii ".reloc\0\0"
	.long reloc_size, reloc, 0x1000, reloc, 0, 0, 0
	.long 0x42000040		# data: read, not needed later

	.section .reloc, "a"		# one block that says nothing: some firmware wants to see one
	.long 0, 12
	.short 0, 0
	.section .note.GNU-stack, "", @progbits
