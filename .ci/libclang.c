/*
 * Parses two standard headers with the libclang that is named by the only argument.
 *
 * `.ci/deps` asks by this program whether RocksDB's bindings can be generated. Bindgen loads libclang when the build runs and
 * parses C headers with it, so this program does the same: a file whose name resembles libclang's, a library of another
 * architecture, and a libclang without its compiler's headers all fail here.
 *
 * Exits with 0 if the headers were parsed. Otherwise it prints the reason and exits with 1.
 */
#include <dlfcn.h>
#include <stdio.h>

struct unsaved_file {
    const char *name;
    const char *contents;
    unsigned long length;
};

typedef void *(*create_index)(int, int);
typedef void *(*parse)(void *, const char *, const char *const *, int, struct unsaved_file *, unsigned, unsigned);
typedef unsigned (*count_diagnostics)(void *);

int main(int argc, char **argv) {
    static const char source[] = "#include <stddef.h>\n#include <stdint.h>\nsize_t length; uint64_t number;\n";
    if (argc != 2) {
        fprintf(stderr, "usage: libclang FILE\n");
        return 1;
    }
    void *library = dlopen(argv[1], RTLD_NOW);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    create_index index = (create_index)dlsym(library, "clang_createIndex");
    parse parse_unit = (parse)dlsym(library, "clang_parseTranslationUnit");
    count_diagnostics count = (count_diagnostics)dlsym(library, "clang_getNumDiagnostics");
    if (index == NULL || parse_unit == NULL || count == NULL) {
        fprintf(stderr, "%s: it has no clang_parseTranslationUnit, so it is not libclang\n", argv[1]);
        return 1;
    }
    struct unsaved_file file = {"probe.h", source, sizeof source - 1};
    void *unit = parse_unit(index(0, 0), "probe.h", NULL, 0, &file, 1, 0);
    if (unit == NULL || count(unit) != 0) {
        fprintf(stderr, "%s: it can't parse <stddef.h> and <stdint.h>\n", argv[1]);
        return 1;
    }
    return 0;
}
