/* A program that does nothing: stands for tools and miners whose name or arguments are what matters. */
#include <unistd.h>
int main(void) { return 0; }
