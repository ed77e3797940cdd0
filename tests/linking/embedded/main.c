void embedded_report(void);

int main(void) {
    embedded_report();
    return 0;
}
