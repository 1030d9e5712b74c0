/* SPDX-License-Identifier: MIT */
/*
 * A program that does nothing, linked with one whole layer and with the layers below it only. That it links is the
 * test: a call upwards would be an undefined reference.
 */
int main(void)
{
	return 0;
}
