/* How a library says which sources it was built from: `SOURCE(name)` gives it the text of the file in which it stands
 * as `name`_source(), which workers/weights/built.py compares with what is there now. */

#ifdef __ELF__
#define SOURCE(name)                                                                                      \
    __asm__(".pushsection .rodata\n" #name "_text: .incbin \"" __FILE__ "\"\n.byte 0\n.popsection");      \
    extern const char name##_text[] __attribute__((visibility("hidden")));                                \
    const char *name##_source(void) { return name##_text; }
#else
#define SOURCE(name)                                                                                      \
    const char *name##_source(void) { return ""; }
#endif

#ifdef OWN_SOURCE /* in one of the files that include this */
SOURCE(source)
#endif
